"""Model loading, adapters, references, sharding and export."""
