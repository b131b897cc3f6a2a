"""Will this flight arrive late? Real flights of New York 2013 and the hourly weather at their airport."""
