"""Carbon: grams of CO2e from joules, a grid intensity and the hardware that was made."""
