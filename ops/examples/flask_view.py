"""Flask: a view that submits the refund of an order, and one that shows its result.

    pip install flask refund-worker
    REFUNDS_REDIS_URL=redis://127.0.0.1:6379/0 flask --app ops/examples/flask_view.py run
    curl -X POST http://127.0.0.1:5000/orders/1001/refund
    curl http://127.0.0.1:5000/refunds/order-1001-1

In a project, copy `refunds`, the views and the error handlers.
"""

from typing import Any

from flask import Flask

from worker import IdempotencyConflict, NotFound, RefundRequest, Refunds, StoreUnavailable

app = Flask(__name__)

# One for the process. Threads may share it, and it survives the fork of a server such as gunicorn.
refunds = Refunds.from_env()

# Stands for your database: the payment and the amount come from there, never from the browser.
ORDERS = {"1001": {"payment_intent": "pi_1787730829493927936", "amount": 500}}


@app.post("/orders/<order_id>/refund")
def refund_order(order_id: str) -> tuple[dict[str, Any], int]:
    """Hand in the refund. Add your own permission check: this pays money out."""
    order = ORDERS.get(order_id)
    if order is None:
        return {"error": f"there is no order {order_id}"}, 404
    # The id comes from the order, so a second click or a repeated request is the same refund.
    # Submit outside of a database transaction: a rollback does not take a refund back.
    request = RefundRequest(
        refund_id=f"order-{order_id}-1",
        reason="requested_by_customer",
        metadata={"order": order_id},
        **order,
    )
    return refunds.submit(request).as_dict(), 202


@app.get("/refunds/<refund_id>")
def show_refund(refund_id: str) -> dict[str, Any]:
    """Show the record; `status` is final once `stage` is `settled`."""
    return refunds.get(refund_id).as_dict()


@app.errorhandler(IdempotencyConflict)
def conflict(error: IdempotencyConflict) -> tuple[dict[str, str], int]:
    """The id exists with another payment or amount."""
    return {"error": str(error)}, 409


@app.errorhandler(NotFound)
def not_found(error: NotFound) -> tuple[dict[str, str], int]:
    """No refund was accepted under this id."""
    return {"error": str(error)}, 404


@app.errorhandler(StoreUnavailable)
def try_again(_: StoreUnavailable) -> tuple[dict[str, str], int, dict[str, str]]:
    """It is not known whether the refund was accepted. The same request again is safe."""
    return {"error": "try again"}, 503, {"Retry-After": "5"}
