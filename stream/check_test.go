package stream

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/integration/natstest"
)

func connectAs(t testing.TB, o ConnectOptions) *nats.Conn {
	t.Helper()
	if o.Logger == nil {
		o.Logger = quiet
	}
	nc, err := Connect(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func TestCheckBroker(t *testing.T) {
	good := natstest.New(t)
	bare := natstest.NewWith(t, natstest.Options{NoJetStream: true})
	locked := natstest.NewWith(t, natstest.Options{User: "u", Secret: "s3cret"})
	small := natstest.NewWith(t, natstest.Options{MaxPayload: 10_000})
	gone := natstest.New(t)
	gone.Stop()
	for name, tc := range map[string]struct {
		o    ConnectOptions
		want []string // in the error; nil: none
	}{
		"good":            {ConnectOptions{URL: good.URL()}, nil},
		"good with user":  {ConnectOptions{URL: locked.URL(), User: "u", Password: "s3cret"}, nil},
		"unreachable":     {ConnectOptions{URL: gone.URL()}, []string{gone.Addr(), "cannot be reached"}},
		"wrong password":  {ConnectOptions{URL: locked.URL(), User: "u", Password: "wrong"}, []string{locked.Addr(), "credentials"}},
		"password in URL": {ConnectOptions{URL: "nats://u:wr0ng@" + locked.Addr()}, []string{locked.Addr(), "credentials"}},
		"no JetStream":    {ConnectOptions{URL: bare.URL()}, []string{bare.Addr(), "JetStream", "jetstream {"}},
		"small payload":   {ConnectOptions{URL: small.URL()}, []string{small.Addr(), "max_payload", "10000"}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			b, err := CheckBroker(ctx, connectAs(t, tc.o), "")
			if tc.want == nil {
				if err != nil || b.MaxPayload != 1<<20 || b.URL == "" {
					t.Errorf("%+v: %v", b, err)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %s", err, want)
				}
			}
			if strings.Contains(err.Error(), "wr0ng") {
				t.Errorf("%q shows a password", err)
			}
		})
	}
}

func TestConnectRefusesWhatCannotWork(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte("no seed"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]ConnectOptions{
		"no URL":      {},
		"no nkey":     {URL: "nats://127.0.0.1:1", NKeyFile: missing},
		"broken nkey": {URL: "nats://127.0.0.1:1", NKeyFile: broken},
		"wrong URL":   {URL: "nats://127.0.0.1:port"},
	} {
		if nc, err := Connect(o); err == nil {
			nc.Close()
			t.Errorf("%s: connected", name)
		}
	}
}

// TestConnectTellsItsState follows a connection from a server that is away, over its start, to its end.
func TestConnectTellsItsState(t *testing.T) {
	s := natstest.New(t)
	s.Stop()
	type change struct {
		connected bool
		cause     error
	}
	changes := make(chan change, 100)
	nc := connectAs(t, ConnectOptions{URL: s.URL(), OnState: func(connected bool, cause error) {
		select {
		case changes <- change{connected, cause}:
		default:
		}
	}})
	until := func(want bool) (c change) {
		t.Helper()
		for {
			select {
			case c = <-changes:
				if c.connected == want {
					return c
				}
			case <-testContext(t).Done():
				t.Fatalf("connected %t was not told", want)
			}
		}
	}
	if c := until(false); c.cause == nil {
		t.Error("away without a cause")
	}
	s.Start(t)
	until(true)
	s.Stop()
	until(false)
	s.Start(t)
	until(true)
	nc.Close()
	until(false)
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"nats://h:4222":                  "nats://h:4222",
		"nats://u:p@h:4222,nats://t@g:1": "nats://h:4222,nats://g:1",
		"127.0.0.1:4222":                 "nats://127.0.0.1:4222",
		"nats://u:p@h:port":              "(a URL that cannot be parsed)",
	} {
		if got := redact(in); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}
