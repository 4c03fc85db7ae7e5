package stream

import (
	"context"
	"testing"

	"github.com/pgbridge/pgbridge/integration/natstest"
)

// TestLeaderStoppedWhilePublishing has a stream of three replicas lose its leader, with frames in flight.
func TestLeaderStoppedWhilePublishing(t *testing.T) {
	c := natstest.NewCluster(t, 3)
	p, _ := running(t, c.Connect(t), 1, PublisherOptions{Replicas: 3})
	const last = 400
	reader := newReader(t, c.Connect(t))
	read := run(t, func(ctx context.Context) error { return reader.Run(ctx, 1, check(1, last)) })
	for n := uint64(1); n <= last; n++ {
		publish(t, p, numbered(1, n, 500))
		if n != last/2 {
			continue
		}
		await(t, p, p.Next()-20) // the others have what is acknowledged
		if leader := c.Leader(testStream); leader != nil {
			leader.Stop()
			leader.Start(t)
		}
	}
	await(t, p, p.Next()-1)
	wantErr(t, read(), errEnough)
	wantStored(t, c.Connect(t), last)
}
