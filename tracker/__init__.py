"""The edge: it answers clicks and conversions, and has no road to the database."""
