"""The checks of the gate. Each module contains functions that return a
`CheckResult`.
"""
