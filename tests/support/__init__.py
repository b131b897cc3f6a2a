"""Support code that the tests of several folders share; `from tests.support.waiting
import wait_until`.
"""
