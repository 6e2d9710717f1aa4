"""What the C library does with memory that is freed: by default much goes back to the system at once.

A step frees its large tensors and the next step asks for as many. Where they come from the system anew,
every page costs a fault, and that time is charged to the step: the more memory, the more of it.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, up to two gigabytes, for what it asks for next.

    It does what the variables MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ do, from within. Results
    are not touched, and GPUs' memory is not either.

    Returns:
        Whether it was done; elsewhere than in glibc there is nothing to do it with.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST))
