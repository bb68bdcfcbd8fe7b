"""What runs in the children of a comparison: the arms of the rows, each an async context manager that takes a job."""
