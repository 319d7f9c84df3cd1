# Holdfast: see `make help`.
