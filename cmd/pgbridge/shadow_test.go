package main

import (
	"context"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

func TestReportOfAShadow(t *testing.T) {
	at := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	shadow := &bridge.ShadowReport{Since: at, Full: true, Undecided: []string{"7 writes of table app.doc: its concurrent writes are merged"},
		Read:      []bridge.ShadowOrigin{{Origin: "a", Seq: 12, Stamp: at}, {Origin: "b", Seq: 9, Stamp: at}},
		Conflicts: []bridge.ShadowConflicts{{Kind: "insert_insert", Outcome: "remote wins", Count: 2}, {Kind: "update_update", Outcome: "local wins", Count: 12, Close: 3}}}
	for range shadowRows + 1 { // one more than are shown
		shadow.Rows = append(shadow.Rows, bridge.ShadowRow{Table: "app.item", Key: `{"id":7}`, Kind: "update_update", Outcome: "local wins",
			RemoteOrigin: "b", RemoteSeq: 3, RemoteStamp: at, LocalOrigin: "a", LocalStamp: at.Add(time.Second)})
	}
	b := backend{status: func(context.Context, *config.Config) (*bridge.Report, error) {
		return &bridge.Report{Cluster: "shop", Node: "a", At: at, Shadow: shadow, Verdict: "it works, with 1 warning"}, nil
	}}
	requireGolden(t, "status_shadow.txt", call(t, b, "status", "-c", writeConfig(t)).out)
}
