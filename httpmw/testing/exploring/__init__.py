"""
Schedules and faults: a scenario in all the ways in which it can go.
"""
