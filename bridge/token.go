package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/config"
)

// A token is a version vector as text, "node:seq,node:seq": what whoever took it could see. Whoever waits for it on another
// node can see that, too.

// MaxWait bounds how long a wait for a token may take.
const MaxWait = time.Hour

// Token asks the bridge that runs with this configuration for a token of what its node has now. ErrNotRunning if none does.
func Token(ctx context.Context, cfg *config.Config) (string, error) {
	resp, err := ask(ctx, cfg, "/token")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(strings.TrimSpace(string(text)))
	}
	return strings.TrimSpace(string(text)), nil
}

// ErrNotYet means that a node does not have what a token stands for in time.
var ErrNotYet = errors.New("this node does not have what the token stands for yet")

// Wait waits until the node of this configuration has what the token stands for; ErrNotYet if it does not in time. It asks
// the database, and needs no bridge here.
func Wait(ctx context.Context, cfg *config.Config, token string, timeout time.Duration) error {
	if timeout < 0 || timeout > MaxWait {
		return fmt.Errorf("a wait of %s: it is 0s to %s", timeout, MaxWait)
	}
	pgc, err := pgx.ParseConfig(cfg.Postgres.DSN)
	if err != nil {
		return fmt.Errorf("postgres.dsn cannot be read: %w", err)
	}
	for name, value := range map[string]string{"application_name": "pgbridge wait", "statement_timeout": "0", "idle_in_transaction_session_timeout": "0",
		"default_transaction_isolation": "read committed"} {
		pgc.RuntimeParams[name] = value
	}
	conn, err := pgx.ConnectConfig(ctx, pgc)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var there bool
	err = conn.QueryRow(ctx, `SELECT pgbridge.wait($1, make_interval(secs => $2))`, token, timeout.Seconds()).Scan(&there)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "22023":
		return &badToken{pg.Message + "; " + pg.Hint}
	case err != nil:
		return fmt.Errorf("wait: %w", err)
	case !there:
		return fmt.Errorf("%w, after %s", ErrNotYet, timeout)
	}
	return nil
}

// badToken is an error in what the caller gave.
type badToken struct{ text string }

func (e *badToken) Error() string { return e.text }

// ExitCode is that of wrong usage.
func (e *badToken) ExitCode() int { return 2 }

// tokenPatience is how long a token may take: capture has to read what was committed last.
const tokenPatience = 30 * time.Second

func (b *bridge) serveToken(w http.ResponseWriter, r *http.Request) {
	l, err := b.current.get()
	if l == nil {
		http.Error(w, errors.Join(errors.New(starting), err).Error(), http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), tokenPatience, errors.New("local changes are not read"))
	defer cancel()
	v, err := l.applier.Seen(ctx, l.capture)
	if err != nil {
		http.Error(w, "no token: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, strings.ReplaceAll(v.String(), " ", ","))
}

// waitsAtOnce bounds the waits over HTTP: each has a connection to the database.
const waitsAtOnce = 32

func (b *bridge) serveWait(w http.ResponseWriter, r *http.Request) {
	if b.waits.Add(1) > waitsAtOnce {
		b.waits.Add(-1)
		http.Error(w, fmt.Sprintf("%d wait already; use pgbridge.wait() in a session of your own", waitsAtOnce), http.StatusServiceUnavailable)
		return
	}
	defer b.waits.Add(-1)
	timeout := tokenPatience
	if text := r.FormValue("timeout"); text != "" {
		var err error
		if timeout, err = time.ParseDuration(text); err != nil {
			http.Error(w, fmt.Sprintf("timeout %q is not a duration; write a number with ms, s or m, such as 5s", text), http.StatusBadRequest)
			return
		}
	}
	// The answer may come later than others may take.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(timeout + time.Minute)) // else it comes within the server's own
	err := Wait(r.Context(), b.cfg, r.FormValue("for"), timeout)
	var bad *badToken
	switch {
	case err == nil:
		fmt.Fprintln(w, "ok")
	case errors.As(err, &bad):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case errors.Is(err, ErrNotYet):
		http.Error(w, err.Error(), http.StatusGatewayTimeout)
	default:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}
