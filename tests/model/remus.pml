/* Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
 *
 * "Acknowledged, or won" (docs/architecture.md, The right to run) as a model for spin: one session of a primary and
 * a backup, a link that delays and loses in each direction, an arbiter whose answers may be lost or late, and a
 * crash with a restart of each side, in every interleaving. There is no time here: whoever may suspect the other
 * may do so at any moment, so that nothing that is proved rests on a clock.
 *
 *   here            in the code
 *   pS, bS          primary::State, backup::State
 *   sent, acked,    primary::Core's counters; sealing is left out: sent <= sealed is asserted there
 *     released
 *   staged, applied backup::Store; acknowledged only when staged, backup::Core::epoch_staged()
 *   BS_DECIDING     the latch backup::Core::acking_stopped(): from here on nothing is staged or acknowledged
 *   nonce           arbiter::Record::nonce; names a request in all its attempts
 *   give_up         arbiter::acquire() answers unknown: frozen, ask again with the same nonce
 *   ordered         ORDER for a switchover: the guest stands, and the primary asks for it only when it likes
 *   BS_LOADING      all that can fail of a promotion is done before the right to run is asked for
 *   PS_ALONE        pass_output: heard without the other;  BS_RUNS  promoted
 *   PS_STARTING     GuestHost::start() after a restart: reads the record before it touches anything
 *
 * Run by model_test.py. -DPLANT_... switches on one defect, which must be found.
 */
#ifndef EPOCHS
#define EPOCHS 2
#endif
#define IN_FLIGHT 2 /* kMaxInFlight, smaller */

mtype = { PS_PROTECTING, PS_DECIDING, PS_ALONE, PS_FENCED, PS_DOWN, PS_STARTING, PS_OFF };
mtype = { BS_STANDBY, BS_LOADING, BS_DECIDING, BS_PROMOTING, BS_RUNS, BS_ENDED, BS_DOWN, BS_STARTING, BS_OFF };

/* Nonces, and with them the owner. */
#define SESSION 1   /* the record that the session began with: the primary's */
#define P_ASKS 2
#define B_ASKS 3
#define P_STARTS 4  /* after a restart: a new guest, a new request */
#define B_STARTS 5
#define owned_by_p (nonce == SESSION || nonce == P_ASKS || nonce == P_STARTS)

mtype pS = PS_PROTECTING;
mtype bS = BS_STANDBY;
byte sent, acked, released;   /* primary */
byte staged, b_acked, applied; /* backup */

/* The arbiter's record. */
byte generation = 1;
byte nonce = SESSION;

/* The link: bytes come in order; a direction that is cut stays cut, what it carries may come late or never. */
chan commits = [IN_FLIGHT] of { byte };
chan acks = [IN_FLIGHT] of { byte };
bool cut_pb, cut_bp;
bool goodbye, ordered;

/* Requests wait at the arbiter, also those that their sender has given up; each side has one that it waits for. */
chan asks_p = [2] of { byte, byte }; /* expected generation, nonce */
chan asks_b = [2] of { byte, byte };
chan answers_p = [1] of { bool, byte, byte, byte }; /* swapped; generation and nonce now; nonce of the request */
chan answers_b = [1] of { bool, byte, byte, byte };
byte losses = 1;                /* requests or answers that the arbiter still may lose */
byte impatience = 1;            /* times somebody gives up though an answer would have come */
bool p_lost_answer, b_lost_answer;

#define heard (pS == PS_ALONE || bS == BS_RUNS)

/* What a side no longer looks at is forgotten, so that states that differ in nothing else are one. */
inline p_leaves() {
  do :: len(acks) > 0 -> acks?e :: else -> break od;
  cut_bp = true; acked = 0; e = 0; sent = (sent > 0 -> 1 : 0)
}

inline b_leaves() {
  do :: len(commits) > 0 -> commits?e :: else -> break od;
  cut_pb = true; b_acked = 0; e = 0; goodbye = false; ordered = false
}

inline p_heard_alone() {
  assert(bS != BS_RUNS);
  assert(owned_by_p);
  pS = PS_ALONE
}

inline b_heard_alone() {
  assert(pS != PS_ALONE);
  assert(!owned_by_p);
  bS = BS_RUNS
}

active proctype primary() {
  byte e, n, g, a, expected;
  bool ok, asking, crashed;
  do
  /* Protecting: COMMIT is queued; acknowledgements come; what they cover is released. */
  :: atomic { pS == PS_PROTECTING && sent < EPOCHS && sent - acked < IN_FLIGHT ->
       sent++;
       if :: !cut_pb && len(commits) < IN_FLIGHT -> commits!sent :: else -> cut_pb = true fi }
  :: atomic { pS == PS_PROTECTING && nempty(acks) ->
       acks?e; assert(e <= sent); acked = e }
  :: atomic { pS == PS_PROTECTING && released < acked ->
       released = acked; assert(released <= staged) }
  :: atomic { pS == PS_PROTECTING -> pS = PS_DECIDING; p_leaves() }
  :: atomic { pS == PS_PROTECTING && sent > 0 && acked == sent && !cut_pb && bS == BS_STANDBY ->
       ordered = true; pS = PS_DECIDING; p_leaves() }
  /* Before a COMMIT was sent nobody else can have the guest. */
  :: atomic { pS == PS_DECIDING && sent == 0 && !asking -> p_heard_alone() }
#ifdef PLANT_TWO_UNPLUGS
  :: atomic { pS == PS_DECIDING && sent > 0 && !asking -> pS = PS_ALONE }
#endif
  /* Deciding and frozen; or starting, after a restart that found the record in this node's name. */
  :: atomic { ((pS == PS_DECIDING && sent > 0) || pS == PS_STARTING) && !asking && nfull(asks_p) &&
           empty(answers_p) ->
       asking = true; p_lost_answer = false;
       if
       :: pS == PS_STARTING -> asks_p!expected,P_STARTS
       :: else -> asks_p!1,P_ASKS
       fi }
  :: atomic { nempty(answers_p) ->
       answers_p?ok,g,n,a;
       if
       :: asking && (a == P_STARTS) == (pS == PS_STARTING) ->
            asking = false;
#ifndef PLANT_FORGET_NONCE
            ok = ok || (pS == PS_STARTING && n == P_STARTS) || (pS == PS_DECIDING && n == P_ASKS);
#endif
            if
            :: ok -> p_heard_alone(); goodbye = (!cut_pb && bS == BS_STANDBY); expected = 0
            :: !ok && pS == PS_STARTING -> pS = PS_DOWN; expected = 0  /* started again */
            :: !ok && pS == PS_DECIDING -> if :: g > 1 -> pS = PS_FENCED :: else fi
            fi
       :: else  /* it came after we had given up */
       fi;
       e = 0; n = 0; g = 0; a = 0; ok = false }
  :: atomic { asking && (p_lost_answer || impatience > 0) && empty(answers_p) ->  /* give_up */
       if :: p_lost_answer :: else -> impatience-- fi;
       asking = false; p_lost_answer = false;
#ifdef PLANT_TRUST_UNKNOWN
       pS = PS_ALONE
#endif
     }
  /* Once, at any moment. */
  :: atomic { !crashed && pS != PS_OFF -> crashed = true; pS = PS_DOWN; asking = false; p_leaves() }
  :: atomic { pS == PS_DOWN && owned_by_p -> expected = generation; pS = PS_STARTING }
  :: atomic { pS == PS_DOWN && !owned_by_p && empty(asks_p) -> pS = PS_OFF }
  :: pS == PS_FENCED || pS == PS_OFF || (pS == PS_ALONE && crashed) -> break
  od
}

active proctype backup() {
  byte e, n, g, a, expected;
  bool ok, asking, crashed;
#ifdef PLANT_ASK_UNLOADED
  bool planned;
#endif
  do
  :: atomic { bS == BS_STANDBY && nempty(commits) ->
       commits?e; assert(e == staged + 1);
       staged = e; e = 0 }
  :: atomic { bS == BS_STANDBY && b_acked < staged ->
       b_acked = staged;
       if :: !cut_bp && len(acks) < IN_FLIGHT -> acks!b_acked :: else -> cut_bp = true fi }
#ifdef PLANT_ACK_AFTER_LATCH
  :: atomic { bS == BS_DECIDING && sent > staged && nfull(acks) && !cut_bp -> acks!sent }
#endif
  :: atomic { (bS == BS_STANDBY || bS == BS_LOADING || bS == BS_PROMOTING) && applied < staged -> applied++ }
  :: atomic { bS == BS_STANDBY && ordered -> b_leaves();
#ifdef PLANT_ASK_UNLOADED
       planned = true; bS = BS_DECIDING }
  :: atomic { bS == BS_PROMOTING && planned -> bS = BS_ENDED }
#else
       bS = BS_LOADING }
  :: atomic { bS == BS_LOADING && applied == staged -> if :: bS = BS_DECIDING :: bS = BS_ENDED fi }
#endif
  :: atomic { bS == BS_STANDBY && goodbye -> bS = BS_ENDED; b_leaves() }
  :: atomic { bS == BS_STANDBY ->
       if :: staged == 0 -> bS = BS_ENDED :: else -> bS = BS_DECIDING fi;
       b_leaves() }
#ifdef PLANT_SKIP_ARBITER
  :: atomic { bS == BS_DECIDING && !asking -> bS = BS_PROMOTING }
#endif
  :: atomic { (bS == BS_DECIDING || bS == BS_STARTING) && !asking && nfull(asks_b) &&
           empty(answers_b) ->
       asking = true; b_lost_answer = false;
       if
       :: bS == BS_STARTING -> asks_b!expected,B_STARTS
       :: else -> asks_b!1,B_ASKS
       fi }
  :: atomic { nempty(answers_b) ->
       answers_b?ok,g,n,a;
       if
       :: asking && (a == B_STARTS) == (bS == BS_STARTING) ->
            asking = false;
#ifndef PLANT_FORGET_NONCE
            ok = ok || (bS == BS_STARTING && n == B_STARTS) || (bS == BS_DECIDING && n == B_ASKS);
#endif
            if
            :: ok && bS == BS_STARTING -> b_heard_alone(); expected = 0
            :: ok && bS == BS_DECIDING -> bS = BS_PROMOTING
            :: !ok && bS == BS_STARTING -> bS = BS_DOWN; expected = 0
            :: !ok && bS == BS_DECIDING -> if :: g > 1 -> bS = BS_ENDED :: else fi
            fi
       :: else
       fi;
       e = 0; n = 0; g = 0; a = 0; ok = false }
  :: atomic { asking && (b_lost_answer || impatience > 0) && empty(answers_b) ->
       if :: b_lost_answer :: else -> impatience-- fi;
       asking = false; b_lost_answer = false;
#ifdef PLANT_TRUST_UNKNOWN
       if :: bS == BS_DECIDING -> bS = BS_PROMOTING :: else fi
#endif
     }
  /* The image is one whole epoch, and nobody has heard more than it remembers. */
#ifdef PLANT_APPLY_HALF
  :: atomic { bS == BS_PROMOTING ->
#else
  :: atomic { bS == BS_PROMOTING && applied == staged ->
#endif
       assert(applied == staged);
       assert(released <= applied);
       b_heard_alone() }
  :: atomic { !crashed && bS != BS_OFF -> crashed = true; bS = BS_DOWN; asking = false; b_leaves() }
  :: atomic { bS == BS_DOWN && !owned_by_p -> expected = generation; bS = BS_STARTING }
  :: atomic { bS == BS_DOWN && owned_by_p && empty(asks_b) -> bS = BS_OFF }
  :: bS == BS_ENDED || bS == BS_OFF || (bS == BS_RUNS && crashed) -> break
  od
}

/* One linear record. A request is taken whenever it suits; it, or its answer, may be lost, and its sender may
 * have given up long before. */
active proctype arbiter() {
  byte e, n;
  bool swapped, of_p, unheard;
end_idle:
  do
  :: atomic { nempty(asks_p) || nempty(asks_b) ->
       if
       :: len(asks_p) > 0 -> asks_p?e,n; of_p = true
       :: len(asks_b) > 0 -> asks_b?e,n; of_p = false
       fi;
       if
       :: losses > 0 -> losses--; unheard = true;
            if :: swapped = (generation == e) :: true fi /* it counts and nobody is told, or it is lost */
       :: swapped = (generation == e)
       fi;
       if :: swapped -> generation++; nonce = n :: else fi;
       if
       :: of_p && !unheard && len(answers_p) == 0 -> answers_p!swapped,generation,nonce,n
       :: of_p && (unheard || len(answers_p) > 0) -> p_lost_answer = true
       :: !of_p && !unheard && len(answers_b) == 0 -> answers_b!swapped,generation,nonce,n
       :: !of_p && (unheard || len(answers_b) > 0) -> b_lost_answer = true
       fi;
       e = 0; n = 0; swapped = false; of_p = false; unheard = false }
  od
}

/* What is on the way when a direction is cut may come late, or never. */
active proctype link() {
  byte e;
  do
  :: atomic { !cut_pb -> cut_pb = true; goodbye = false; ordered = false;
       if :: true :: do :: len(commits) > 0 -> commits?e :: else -> break od; e = 0 fi }
  :: atomic { !cut_bp -> cut_bp = true;
       if :: true :: do :: len(acks) > 0 -> acks?e :: else -> break od; e = 0 fi }
  :: break
  od
}

/* Whoever has to decide is not left so: in the end somebody runs and is heard, also over a crash of each. */
ltl settles { [] ((pS == PS_DECIDING || bS == BS_DECIDING) -> <> heard) }
