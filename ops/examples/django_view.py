"""Django: a view that submits the refund of an order, and one that shows its result.

    pip install django refund-worker
    export REFUNDS_REDIS_URL=redis://127.0.0.1:6379/0
    python ops/examples/django_view.py runserver --noreload
    curl -X POST http://127.0.0.1:8000/orders/1001/refund
    curl http://127.0.0.1:8000/refunds/order-1001-1

In a project, copy `refunds` and the two views, and add `urlpatterns` to your own. The last lines
only make this file run by itself.
"""

import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST

from worker import IdempotencyConflict, NotFound, RefundRequest, Refunds, StoreUnavailable

# One for the process. Threads may share it, and it survives the fork of a server such as gunicorn.
refunds = Refunds.from_env()

# Stands for your database: the payment and the amount come from there, never from the browser.
ORDERS = {"1001": {"payment_intent": "pi_1787730829493927936", "amount": 500}}


@require_POST
def refund_order(_: HttpRequest, order_id: str) -> JsonResponse:
    """Hand in the refund. Add your own permission check: this pays money out."""
    order = ORDERS.get(order_id)
    if order is None:
        return JsonResponse({"error": f"there is no order {order_id}"}, status=404)
    # The id comes from the order, so a second click or a repeated request is the same refund.
    # Submit outside of a database transaction: a rollback does not take a refund back.
    request = RefundRequest(
        refund_id=f"order-{order_id}-1",
        reason="requested_by_customer",
        metadata={"order": order_id},
        **order,
    )
    try:
        refund = refunds.submit(request)
    except IdempotencyConflict as error:
        return JsonResponse({"error": str(error)}, status=409)
    except StoreUnavailable:
        # It is not known whether the refund was accepted. The same request again is safe.
        return JsonResponse({"error": "try again"}, status=503, headers={"Retry-After": "5"})
    return JsonResponse(refund.as_dict(), status=202)


@require_GET
def show_refund(_: HttpRequest, refund_id: str) -> JsonResponse:
    """Show the record; `status` is final once `stage` is `settled`."""
    try:
        return JsonResponse(refunds.get(refund_id).as_dict())
    except NotFound as error:
        return JsonResponse({"error": str(error)}, status=404)
    except StoreUnavailable:
        return JsonResponse({"error": "try again"}, status=503, headers={"Retry-After": "5"})


urlpatterns = [
    path("orders/<slug:order_id>/refund", refund_order),
    path("refunds/<str:refund_id>", show_refund),
]

if __name__ == "__main__":
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"])
    execute_from_command_line(sys.argv)
