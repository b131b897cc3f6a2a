"""The kinds of monitor, one module each: `judge(question)` gives what was found in the window."""
