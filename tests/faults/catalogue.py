# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The scenarios that run.py knows, each with the numbers of the faults (docs/faults.md) that it does."""

from arbiters import ARBITERS
from scene import Needs

SCENARIOS = []


class Scenario:
    def __init__(self, numbers, name, act, needs, arbiters=ARBITERS):
        self.numbers, self.name, self.act, self.needs = numbers, name, act, needs
        self.arbiters = arbiters  # With the others it has no meaning; its docstring says why.


def scenario(*numbers, arbiters=ARBITERS, **needs):
    """Decorates a function that does the fault to a Scene with a protected guest and returns (begin, end,
    Expect): when it began, when it was over, and what may be the case afterwards."""
    def keep(act):
        SCENARIOS.append(Scenario(numbers, act.__name__, act, Needs(**needs), arbiters))
        return act
    return keep
