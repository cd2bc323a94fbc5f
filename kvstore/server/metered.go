package server

import (
	"net"
	"time"
)

// metered is a reader's connection once it is secure. What is read is handed to
// gRPC in small pieces, and the reader pays for what each of them takes; as long
// as it owes something nothing more is read, so that asking for more than its
// share costs us next to nothing. What is sent is paid for too, news from another purse.
type metered struct {
	net.Conn
	c    *conn
	mark time.Time // the last piece was read
}

const (
	// pieceBytes is how much is handed on at once: some 20 of the smallest frames.
	pieceBytes = 512
	// pieceCost is what a piece is expected to take until it is known.
	pieceCost = 10 * time.Microsecond
	// longestPiece is the most that is paid for a piece: what takes longer waited
	// for something.
	longestPiece = 2 * time.Millisecond
	// callCost is what gRPC takes for a call besides, and requestCost for another
	// request in it.
	callCost = 20 * time.Microsecond
	// connectCost is what a connection takes besides its handshake.
	connectCost = 100 * time.Microsecond
	// breath is the longest pause in what is done for a reader in debt. It is cut
	// into many small steps, so that others come in between.
	breath      = 10 * time.Millisecond
	requestCost = 10 * time.Microsecond
)

// Read implements [net.Conn].
func (m *metered) Read(b []byte) (int, error) {
	if !m.mark.IsZero() {
		m.c.spend(min(time.Since(m.mark), longestPiece) - pieceCost)
	}
	m.c.payOff(m.c.purses.Take(pieceCost))
	begin, idle := time.Now(), m.c.idle
	n, err := m.Conn.Read(b[:min(len(b), pieceBytes)])
	m.mark = begin.Add(m.c.idle - idle) // decryption is part of it
	return n, err
}

// Write implements [net.Conn].
func (m *metered) Write(b []byte) (int, error) {
	begin := time.Now()
	m.c.writing.Store(stamp())
	n, err := m.Conn.Write(b)
	m.c.writing.Store(0)
	took := min(time.Since(begin), mostForSending(len(b)))
	news := took * time.Duration(m.c.takeFresh(len(b))) / time.Duration(max(1, len(b)))
	m.c.news.Take(news)
	if wait := m.c.purses.Take(took - news); wait > 0 && news < took {
		m.c.sleep(min(wait, breath))
	}
	return n, err
}

// mostForSending is the most that is paid for sending n bytes: what takes longer
// waited for the reader.
func mostForSending(n int) time.Duration {
	return 50*time.Microsecond + 4*time.Duration(n)
}

// spend takes processor time that was used for the reader.
func (c *conn) spend(d time.Duration) { c.purses.Take(d) }

// payOff waits until the reader owes nothing, and counts when that begins.
func (c *conn) payOff(wait time.Duration) {
	if wait == 0 {
		c.indebted = false
		return
	}
	if !c.indebted {
		c.indebted = true
		c.refuse(refusedProcessor)
	}
	c.paused.Store(true)
	defer c.resume()
	c.sleep(wait)
}

// sleep waits unless the connection or the server ends.
func (c *conn) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.done:
	case <-c.set.closing:
	}
}

// takeFresh uses up to n of the bytes that are news and returns how many there
// were. Only one goroutine sends.
func (c *conn) takeFresh(n int) int {
	fresh := min(int64(n), c.fresh.Load())
	c.fresh.Add(-fresh)
	return int(fresh)
}

// owes reports whether the reader is in debt.
func (c *conn) owes() bool { return c.purses.Take(0) > 0 }

// payListing takes for a listing what the last one took, to be given back when
// it has been paid for itself, and returns how long it has to wait.
func (c *conn) payListing() (paid, wait time.Duration) {
	paid = time.Duration(c.account().listing.Load())
	return paid, c.purses.Take(paid)
}
