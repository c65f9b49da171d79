"""What can go wrong in `policies`.

PolicyError      a setting, signal or file that no decision can be made from
"""


class PolicyError(ValueError):
    """A setting, signal or file that no decision can be made from."""
