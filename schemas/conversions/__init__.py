"""What a conversion door was sent, read by the sender's dialect and judged: pure functions, the same at the edge and
when an intake is run again."""
