"""A model that predicts late arrivals from real flights that left New York in 2013 and
the hourly weather.
"""
