package doctor

import (
	"slices"

	"github.com/pgbridge/pgbridge/capture"
)

// guarantees says what holds on this server, and what is weaker, and why.
func guarantees(f *Facts) []Guarantee {
	s := f.Server
	all := []Guarantee{}
	if s == nil {
		return all
	}
	promise := func(name string, holds bool, because string) {
		if holds {
			because = ""
		}
		all = append(all, Guarantee{name, holds, because})
	}
	found := func(codes ...string) bool {
		return slices.ContainsFunc(f.Capture, func(x capture.Finding) bool { return slices.Contains(codes, x.Code) })
	}
	role := "role " + s.Role.Name
	promise("what is committed here is read and sent", s.Role.Replication && !found(capture.CodeWALLevel, capture.CodeSlotInvalidated),
		role+" may not replicate, wal_level is not logical, or the slot is lost: no bridge runs")
	promise("a remote transaction is applied under its origin, and never sent back", len(s.Role.Functions) == 0,
		role+" may not call the functions of replication origins: no bridge runs")
	promise("triggers and foreign keys do not act again on remote rows", s.Role.Replica,
		role+" may not set session_replication_role: no bridge runs")
	promise("each row version keeps its author's stamp, by which conflicts are decided", !found(capture.CodeCommitTimestamp),
		"track_commit_timestamp is off: no bridge runs")
	promise("what PostgreSQL has committed survives a power cut", s.Settings["fsync"] != "off" && s.Settings["full_page_writes"] != "off",
		"fsync or full_page_writes is off")
	promise("what the broker has acknowledged survives a power cut", f.brokerKeeps(), f.brokerBecause())
	promise("the slot cannot fill the server's disk", s.Settings["max_slot_wal_keep_size"] != "-1",
		"max_slot_wal_keep_size is -1: the slot is never lost, and the disk may fill")
	promise("a standby can take over with the slot", f.Config.Postgres.Failover && s.Version >= 170000, f.failoverBecause())
	promise("a new table is replicated without a person", f.Config.Postgres.AutoSetup && !slices.ContainsFunc(s.Tables, func(t Table) bool { return !t.Owned }),
		"postgres.auto_setup is off, or tables have other owners than "+role+": their owner publishes a new one")
	promise("old transactions of other roles are seen", s.Role.Monitor,
		role+" is no member of pg_read_all_stats; GRANT pg_read_all_stats TO "+s.Role.Name+" makes it one")
	return all
}

// brokerKeeps reports whether what the broker has acknowledged is on a disk, or on those of several servers.
func (f *Facts) brokerKeeps() bool {
	if f.Config.Embedded() {
		return f.Config.NATS.Embedded.Sync == "always"
	}
	return f.Broker != nil && f.Broker.Stream != nil && f.Broker.Stream.Replicas > 1
}

func (f *Facts) brokerBecause() string {
	if f.Config.Embedded() {
		return "nats.embedded.sync is " + f.Config.NATS.Embedded.Sync
	}
	return "the stream at the external broker has one replica, and a client cannot see how that server syncs"
}

func (f *Facts) failoverBecause() string {
	if f.Server.Version < 170000 {
		return "before PostgreSQL 17 a promoted standby has no logical slot"
	}
	return "postgres.failover is off (docs/failover.md)"
}
