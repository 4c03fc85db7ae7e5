package capture

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Primary asks one PostgreSQL server, and keeps a connection from one question for the next: a new one costs the server a
// process, and the time for it. It must be closed. It is safe for concurrent use; two questions at once take two connections.
type Primary struct {
	dsn string

	mu     sync.Mutex
	spare  *pgx.Conn   // guarded by mu; nobody uses it
	expiry *time.Timer // guarded by mu; gives the spare one up
	closed bool        // guarded by mu
}

// spareFor is how long a connection is kept that nobody uses: longer than what asks each minute.
const spareFor = 90 * time.Second

// NewPrimary returns a Primary for a connection string, which is not looked at before the first question.
func NewPrimary(dsn string) *Primary { return &Primary{dsn: dsn} }

// Ask lends f a connection as Connect opens it, which f must not close: with Connect's settings, and no open transaction. What f
// sets in the session ends with it. The error is that of the connection, as Connect has it, or f's.
func (p *Primary) Ask(ctx context.Context, f func(conn *pgx.Conn) error) error {
	conn := p.take(ctx)
	if conn == nil {
		var err error
		if conn, err = Connect(ctx, p.dsn); err != nil {
			return err
		}
	}
	defer p.giveBack(conn)
	return f(conn)
}

// take returns the spare connection, as new, if there is one and its server answers.
func (p *Primary) take(ctx context.Context) *pgx.Conn {
	p.mu.Lock()
	conn := p.spare
	p.spare = nil
	p.mu.Unlock()
	if conn == nil {
		return nil
	}
	// Statements are prepared anew, since a question may have changed the tables that they are of.
	err := conn.DeallocateAll(ctx)
	if err == nil {
		_, err = conn.Exec(ctx, "RESET ALL")
	}
	if err != nil {
		conn.Close(context.WithoutCancel(ctx))
		return nil
	}
	return conn
}

func (p *Primary) giveBack(conn *pgx.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.spare != nil || conn.IsClosed() || conn.PgConn().TxStatus() != 'I' {
		closeSoon(conn)
		return
	}
	p.spare = conn
	if p.expiry == nil {
		p.expiry = time.AfterFunc(spareFor, p.giveUp)
	}
	p.expiry.Reset(spareFor)
}

// giveUp closes the spare connection.
func (p *Primary) giveUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop()
}

// drop is giveUp with mu held.
func (p *Primary) drop() {
	if p.spare != nil {
		closeSoon(p.spare)
		p.spare = nil
	}
}

// Close closes the connection that is kept. A question that is under way ends by itself, and later ones take a connection each.
func (p *Primary) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.drop()
	if p.expiry != nil {
		p.expiry.Stop()
	}
}

// closeSoon closes a connection on which nothing is under way; a server that does not answer holds nobody up.
func closeSoon(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn.Close(ctx)
}
