"""The processes: a supervisor, its worker, and what watches over both."""
