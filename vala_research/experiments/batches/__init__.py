"""Many runs of notebooks: grids of parameters on Dask, their results, figures and gallery."""
