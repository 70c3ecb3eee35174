"""Holds any optax optimizer to the checks that this library's own pass, with one call.

In anyone's tests, in one line::

    msvag_optax.testing.check(my_optimizer).require()

Nothing but JAX, NumPy and optax is needed. What needs a package that is not installed is listed in
the report as not run.
"""

from msvag_optax.testing.report import CONTRACT as CONTRACT
from msvag_optax.testing.report import HOUSE as HOUSE
from msvag_optax.testing.report import Report as Report
from msvag_optax.testing.report import check as check
from msvag_optax.testing.runs import NotRunError as NotRunError
from msvag_optax.testing.runs import Row as Row
