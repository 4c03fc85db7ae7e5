package stream

import (
	"context"
	"strings"
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

// TestReplicasAreChanged: of a stream that is there, and left as they are where none are asked for. A server that is alone says so.
func TestReplicasAreChanged(t *testing.T) {
	c := natstest.NewCluster(t, 3)
	nc := c.Connect(t)
	want := func(ask, replicas int) {
		t.Helper()
		p, err := OpenPublisher(t.Context(), nc, PublisherOptions{Cluster: testCluster, Node: testNode, Replicas: ask})
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
		kept, err := LookUp(t.Context(), nc, "", testStream)
		if err != nil || kept.Replicas != replicas {
			t.Errorf("asked for %d, it has %d replicas: %v", ask, kept.Replicas, err)
		}
	}
	want(0, 1)
	want(3, 3)
	want(0, 3)
	want(1, 1)
	alone := natstest.New(t)
	for range 2 {
		_, err := OpenPublisher(t.Context(), alone.Connect(t), PublisherOptions{Cluster: testCluster, Node: testNode, Replicas: 3})
		if err == nil || !strings.Contains(err.Error(), "lower stream.replicas") {
			t.Errorf("three replicas on one server: %v", err)
		}
		if _, err := OpenPublisher(t.Context(), alone.Connect(t), PublisherOptions{Cluster: testCluster, Node: testNode}); err != nil {
			t.Fatal(err)
		}
	}
}
