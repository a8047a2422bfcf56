"""The engine: it runs any method that is a generator of losses."""
