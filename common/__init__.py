"""What every other folder may use: the one exception that a user's mistake ends in, and how a program ends."""
