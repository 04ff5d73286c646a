"""Training on a CPU: operations for which torch is slow, and the threads that compute them."""
