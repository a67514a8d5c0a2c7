"""PartyService: what the data owner's own staff ask of the daemon. A thin shell over `party.daemon`.

Only an operator of the consortium whose name stands in the configuration's roster, or who is named like the party, is
admitted. Numbers about data leave this machine only through this service, to that operator.
"""

from __future__ import annotations

import grpc

from party.daemon import Daemon
from veil import __version__
from veil.errors import IdentityError
from veil.identity.names import Role
from veil.privacy.accountant import to_micro
from veil.wire.channel import Service, caller
from veil.wire.v1 import party_pb2, party_pb2_grpc, privacy_pb2

NAME = "veil.wire.v1.PartyService"


class PartyServicer(party_pb2_grpc.PartyServiceServicer):
    """The four calls of protos/veil/wire/v1/party.proto."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def GetStatus(
        self, request: party_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> party_pb2.GetStatusResponse:
        """Budget, jobs, and what happened to the rows."""
        self._admit(context)
        daemon, report = self._daemon, self._daemon.prepared.report
        budget = daemon.config.budget
        return party_pb2.GetStatusResponse(
            party=daemon.name,
            joined=daemon.link.joined,
            software_version=__version__,
            budget=privacy_pb2.BudgetStatus(
                epsilon_limit_micro=to_micro(budget.epsilon),
                epsilon_spent_micro=to_micro(daemon.ledger.spent()),
                delta=f"{budget.delta:g}",
                neighbouring=privacy_pb2.NEIGHBOURING_RELATION_ADD_OR_REMOVE_ONE_USER,
                releases=len(daemon.ledger.entries()),
            ),
            running_jobs=daemon.running(),
            pending_jobs=[job.job_id for job in daemon.pending()],
            ingest=party_pb2.IngestReport(
                rows_read=report.rows_read,
                rows_kept=report.rows_kept,
                rows_bad=report.rows_bad,
                rows_duplicate=report.rows_duplicate,
                rows_unknown_item=report.rows_unknown_item,
            ),
        )

    def ListPendingJobs(
        self, request: party_pb2.ListPendingJobsRequest, context: grpc.ServicerContext
    ) -> party_pb2.ListPendingJobsResponse:
        """Jobs that wait for a person."""
        self._admit(context)
        return party_pb2.ListPendingJobsResponse(jobs=self._daemon.pending())

    def ApproveJob(
        self, request: party_pb2.ApproveJobRequest, context: grpc.ServicerContext
    ) -> party_pb2.ApproveJobResponse:
        """Signs a pending job."""
        self._admit(context)
        self._daemon.approve(request.job_id, request.digest)
        return party_pb2.ApproveJobResponse()

    def RefuseJob(
        self, request: party_pb2.RefuseJobRequest, context: grpc.ServicerContext
    ) -> party_pb2.RefuseJobResponse:
        """Declines a pending job."""
        self._admit(context)
        self._daemon.refuse(request.job_id, request.reason)
        return party_pb2.RefuseJobResponse()

    def _admit(self, context: grpc.ServicerContext) -> None:
        operator = caller(context)
        allowed = self._daemon.config.operators or (self._daemon.name,)
        if operator.name not in allowed:
            raise IdentityError(
                f"got operator {operator.name!r}, expected one of {', '.join(allowed)}",
                hint="name the operator in `operators` of the party's config",
            )


def service(daemon: Daemon) -> Service:
    """The service as `veil.wire.channel.serve` takes it."""
    return Service(
        name=NAME,
        add=lambda server: party_pb2_grpc.add_PartyServiceServicer_to_server(PartyServicer(daemon), server),
        roles=frozenset({Role.OPERATOR}),
    )
