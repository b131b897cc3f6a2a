"""A table for encoders of categories."""

import numpy as np
import pandas as pd


def delays():
    """Return columns of numbers, of strings with gaps, and of integer categories; and
    for each row, if it is delayed.
    """
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "distance": random.random(300),
            "city": random.choice(["oslo", "lima", "São Paulo"], 300),
            "hour": random.normal(size=300),
            "zip": random.choice([10, 20, 30], 300),
            "sex": random.choice(["m", "f"], 300),
        }
    )
    table["city"] = table.city.mask(random.random(300) < 0.1)
    delayed = table.distance + (table.city == "oslo") + 0.2 * (table.zip == 20) > 0.9
    return table, delayed.astype(int)
