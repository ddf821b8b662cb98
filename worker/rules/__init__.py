"""Pure decisions: what an answer means, where a refund may go, what to do next."""
