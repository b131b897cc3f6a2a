"""A model that predicts whether a flight arrives late, from real flights of New York 2013 and the hourly weather."""
