"""The Triton kernels: how they are launched (`launch`, `parameters`, `table`), and what runs on the GPU (the rest).

Importing `parameters` and `table` needs torch alone; the other modules need Triton.
"""
