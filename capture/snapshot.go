package capture

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
)

// Snapshot is what a server's data were at one LSN: all commits whose records begin below it and no others (PROOF.md F17).
type Snapshot struct {
	Name string // for SET TRANSACTION SNAPSHOT, until Close
	LSN  uint64
	conn *pgconn.PgConn
}

// snapshotPatience is how long the transactions that run may take to end.
const snapshotPatience = time.Minute

// ExportSnapshot takes a snapshot. The server waits for the transactions that run to end, and lends a slot meanwhile.
func ExportSnapshot(ctx context.Context, dsn string) (_ *Snapshot, err error) {
	conn, err := connectReplication(ctx, dsn)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{conn: conn}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	waiting, cancel := context.WithTimeout(ctx, snapshotPatience)
	defer cancel()
	r, err := pglogrepl.CreateReplicationSlot(waiting, conn, fmt.Sprintf("pgbridge_snapshot_%d", conn.PID()), "pgoutput",
		pglogrepl.CreateReplicationSlotOptions{Temporary: true, SnapshotAction: "EXPORT_SNAPSHOT"})
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("no snapshot within %s: a transaction does not end; see pg_stat_activity", snapshotPatience)
	}
	if err != nil {
		return nil, classify(err, "take a snapshot")
	}
	lsn, err := pglogrepl.ParseLSN(r.ConsistentPoint)
	if err != nil {
		return nil, fmt.Errorf("take a snapshot: %w", err)
	}
	s.Name, s.LSN = r.SnapshotName, uint64(lsn)
	return s, nil
}

// Close gives the snapshot up. Transactions that have taken it over keep it. A second call does nothing.
func (s *Snapshot) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.conn.Close(ctx)
}
