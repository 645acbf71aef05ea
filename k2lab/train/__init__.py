"""Layer 6, making K2-nano: data, MuonClip, fine-tuning, export."""
