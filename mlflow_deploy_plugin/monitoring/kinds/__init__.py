"""The kinds of monitor, one module each with `judge(request)`, which returns the result of the window."""
