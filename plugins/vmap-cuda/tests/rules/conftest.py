"""Every file here runs with the stand-ins for operators that exist only on CUDA."""

import pytest
from cuda_standins import install


@pytest.fixture(scope="module", autouse=True)
def standins():
    library = install()
    yield
    library._destroy()
