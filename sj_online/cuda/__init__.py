"""CUDA kernels through CuPy: see :mod:`sj_online.cuda.loader`."""
