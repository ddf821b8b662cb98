"""Pure decisions: what an answer means, which moves a refund may make, and what to do next."""
