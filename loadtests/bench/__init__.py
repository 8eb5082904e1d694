"""`clickdam bench`: durable redirects beside what people build by hand, in turns, on the same core, no click lost."""
