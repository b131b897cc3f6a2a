"""The results of commands: for people in lines and tables, for programs in JSON."""
