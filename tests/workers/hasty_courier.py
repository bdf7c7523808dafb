"""The courier, with times short enough for a test: `python -m tests.workers.hasty_courier`."""

from service import webhooks
from workers import courier

if __name__ == "__main__":
    webhooks.LEASE_S = 1.0
    courier.FIRST_WAIT_S = 0.05
    courier.main()
