"""Callbacks: signed POSTs that tell a shop's endpoints the present state of a refund or batch."""
