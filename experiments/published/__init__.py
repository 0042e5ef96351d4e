"""Published networks as JAX functions, to measure what trained upsampling leaves in photographs."""
