"""The rows, a module for each part of the system. `bench.row` says how one is declared."""
