"""The ground both scripts stand on: it knows neither the method nor the data."""
