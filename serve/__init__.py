"""The Ray Serve application: empty until models can be promoted."""
