package integration

import (
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestCaptureThatCannotConnect: somebody else holds the slot, and all else works. Status says that nothing is
// read, and why.
func TestCaptureThatCannotConnect(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 1})
	a := c.Node("a")
	slot := a.Status().Slot.Slot
	a.AwaitStatus(func(r *cluster.Report) bool { return r.Capture.State == "streaming" })
	a.Stop()
	a.Await(`SELECT active FROM pg_replication_slots WHERE slot_name = '`+slot+`'`, "f") // the walsender goes a little later
	thief, err := pgconn.Connect(t.Context(), a.DSN+"&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close(t.Context())
	if err := pglogrepl.StartReplication(t.Context(), thief, slot, 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names '" + slot + "'"}}); err != nil {
		t.Fatal(err)
	}
	a.Start()
	a.AwaitStatus(func(r *cluster.Report) bool {
		return r.Capture.State == "connecting" && strings.Contains(r.Capture.Waiting, "is active for PID") && hasAlarm(r, "capture-waits")
	})
	if err := thief.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.AwaitStatus(func(r *cluster.Report) bool { return r.Capture.State == "streaming" && len(r.Alarms) == 0 })
}
