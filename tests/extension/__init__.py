"""A pybind11 extension, as others write them: what C++ makes of the tensors of a mapped function."""
