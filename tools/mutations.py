"""
Faults to be planted in the engine, one at a time, by `tools/mutate.py`.

Each is a piece of a file that is there exactly once, and what it is replaced with. Who changes
such a piece of the engine changes it here as well; `python -m tools.mutate --check` says which
ones do not apply any more.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One fault: its name, the file, what is there, and what is planted."""

    name: str
    file: str
    old: str
    new: str
    # The test that should notice it, where few schedules do.
    tests: str = ""
    # Why nothing can tell the difference, for those that survive.
    equivalent: str = ""


EXCHANGE, TRAVEL, BODY, DRIVE, CONTEXT, RESPONSE, OBSERVE, SCOPE, LIMIT, HANDSHAKE = (
    f"httpmw/_{name}.py"
    for name in (
        *("exchange", "travel", "body", "drive", "context", "response", "observe", "scope"),
        *("limit", "handshake"),
    )
)

MUTATIONS = [
    # A flow is stepped by one caller at a time, and always ended.
    Mutation(
        "an orphan of the app is not waited for",
        TRAVEL,
        """        if self.taken and not _context.is_cancellation(failure):
            await self.wait()  # an orphan""",
        """        if False:
            await self.wait()  # an orphan""",
        tests="tests/engine/test_events.py::test_orphan_inside_a_step",
    ),
    Mutation(
        "a flow that broke the contract is not closed",
        EXCHANGE,
        """            await flow.aclose()
""",
        """            pass
""",
    ),
    Mutation(
        "flows are left when the adapter is closed",
        EXCHANGE,
        "for each in [*flows, *self.transforms]:",
        "for each in ():",
        tests="tests/engine/test_events.py::test_generator_exit_of_the_app",
    ),
    Mutation(
        "transforms are not closed at the end",
        EXCHANGE,
        "            for each in self.transforms:\n                if not",
        "            for each in ():\n                if not",
    ),
    Mutation(
        "flows get an exception from the outside in",
        EXCHANGE,
        "failure = await self._throw(waiting.pop(), failure)",
        "failure = await self._throw(waiting.pop(0), failure)",
    ),
    Mutation(
        "flows end from the outside in",
        EXCHANGE,
        "tail, *self.tails = self.tails",
        "*self.tails, tail = self.tails",
    ),
    Mutation(
        "a late exception is not raised at `yield response`",
        EXCHANGE,
        """                value = await flow.asend(None)
            else:
                value = await flow.athrow(failure)""",
        """                value = await flow.asend(None)
            else:
                value = await flow.asend(None)""",
    ),
    Mutation(
        "the traceback of an exception grows with each flow",
        EXCHANGE,
        """                failure.__traceback__ = traceback
                return failure
            return exc""",
        """                return failure
            return exc""",
        tests="tests/engine/test_events.py::test_exception_in_the_body_is_unchanged",
    ),
    Mutation(
        "a flow is stepped from the outside in",
        TRAVEL,
        """                    flow = waiting.pop()
                    step = flow.asend(response)""",
        """                    flow = waiting.pop(0)
                    step = flow.asend(response)""",
    ),
    Mutation(
        "a layer with a `__call__` of its own is fused",
        EXCHANGE,
        "return layers_of(app) if runs_as_adapter(app)",
        "return layers_of(app) if isinstance(app, Adapter)",
        tests="tests/engine/test_fusing.py::test_layer_with_a_call_of_its_own_does_not_fuse",
    ),
    # An early answer is a response like any other.
    Mutation(
        "an early answer goes out past the flows further out",
        EXCHANGE,
        "if len(self.waiting) > 1 or self.incoming is not None",
        "if self.incoming is not None",
        tests="tests/engine/test_rules.py::test_early_answer_passes_the_outer_layers",
    ),
    Mutation(
        "an early answer gets nothing of a body that was read",
        EXCHANGE,
        "if len(self.waiting) > 1 or self.incoming is not None",
        "if len(self.waiting) > 1",
        tests="tests/engine/test_request_body.py::test_body_is_read_by_a_layer_and_by_its_answer",
    ),
    Mutation(
        "what an early answer failed with is lost",
        EXCHANGE,
        "return await self._resume(self.waiting.pop(), failure)",
        "return await self._resume(self.waiting.pop(), None)",
        tests="tests/engine/test_events.py::test_early_answer_that_fails",
    ),
    # The start is sent once, before any body, and nothing follows the last message.
    Mutation(
        "a second start goes out past the flows",
        TRAVEL,
        """        else:
            raise _errors.second_start()""",
        """        else:
            await self.server_send(message)""",
        tests="tests/engine/test_events.py::test_app_cancels_its_own_send_and_tries_again",
    ),
    Mutation(
        "an app whose response was replaced is not discarded",
        TRAVEL,
        """.run(value)
        self.phase = self.phase.replaced""",
        """.run(value)
        self.phase = self.phase.out""",
    ),
    Mutation(
        "an app whose body was set is not discarded",
        TRAVEL,
        """        if body.source is not live:
            self.phase = self.phase.replaced""",
        """        if body.source is not live:
            self.phase = self.phase.out""",
    ),
    Mutation(
        "a start that failed may be sent again",
        TRAVEL,
        """            self._lost.without_response = True
        self.phase = self.phase.lost""",
        """            self._lost.without_response = True
        self.phase = WAITING""",
        tests="tests/engine/test_events.py::test_app_cancels_its_own_send_and_tries_again",
    ),
    Mutation(
        "a start that was cancelled is not missed",
        TRAVEL,
        """            self._lost.without_response = True
""",
        """            self._lost.without_response = False
""",
        tests="tests/engine/test_events.py::test_app_cancels_its_own_send_and_tries_again",
    ),
    Mutation(
        "an app may send on after a flow has failed",
        TRAVEL,
        "raise self._failure or",
        "return self._failure and",
        tests="tests/engine/test_events.py::test_every_send_raises_the_exception",
    ),
    Mutation(
        "what a flow raised is not kept",
        TRAVEL,
        "self._failure = tail.failure = kept",
        "self._failure = kept",
        tests="tests/engine/test_events.py::test_function_raises_after_the_yield",
    ),
    Mutation(
        "a cancellation of the app's own is kept and raised later",
        TRAVEL,
        "kept = _context.without_cancellations(failure)",
        "kept = failure",
    ),
    # The app learns of a disconnect only while no step is under way.
    Mutation(
        "a disconnect is told during a step",
        TRAVEL,
        """            await self._all_quiet()""",
        """            pass""",
    ),
    Mutation(
        "a disconnect is told during a step further out",
        TRAVEL,
        """outbound = getattr(self.exchange.server_receive, "__self__", None)""",
        """outbound = None""",
        tests="tests/engine/test_schedules.py::test_disconnect_waits_for_the_layers_further_out_as_well",
    ),
    Mutation(
        "a cancelled request is taken for an app without a response",
        EXCHANGE,
        """            cancellation = await _context.pending_cancellation()""",
        """            pass""",
        tests="tests/engine/test_schedules.py::test_cancelled_request_is_not_an_app_without_a_response",
    ),
    Mutation(
        "two may receive from the server at a time",
        EXCHANGE,
        "elif turn.taken and not self.gone:",
        "elif False:",
        tests="tests/engine/test_events.py::test_everyone_is_told_of_the_disconnect",
    ),
    Mutation(
        "a disconnect is forgotten",
        EXCHANGE,
        """        if message["type"] == "http.disconnect":
            self.gone = True
            self.farewell = message
        return message""",
        """        return message""",
    ),
    Mutation(
        "siblings may send during a step",
        TRAVEL,
        """        if self.taken:
            await self.wait()
        phase = self.phase""",
        """        phase = self.phase""",
    ),
    # A discarded app sees what a client that left would show it.
    Mutation(
        "a discarded app receives from the server",
        TRAVEL,
        """        if self.phase is DISCARDED or self.phase is TRAILERS_ONLY:
            self.told_gone = True""",
        """        if False:
            self.told_gone = True""",
    ),
    Mutation(
        "messages are dropped without a checkpoint",
        TRAVEL,
        """        await checkpoint()
        for progress""",
        """        for progress""",
        tests="tests/engine/test_discarded.py::test_dropped_message_gives_way",
    ),
    Mutation(
        "a discarded app gets an OSError below 2.4",
        TRAVEL,
        "and self._spec_version() >= (2, 4)",
        "and self._spec_version() >= (2, 0)",
        tests="tests/engine/test_discarded.py::test_message_with_more_body",
    ),
    Mutation(
        "a discarded app never gets an OSError",
        TRAVEL,
        "and self._spec_version() >= (2, 4)",
        "and self._spec_version() >= (9, 0)",
        tests="tests/engine/test_discarded.py::test_message_with_more_body",
    ),
    Mutation(
        "the last message of a discarded app raises as well",
        TRAVEL,
        """            and message.get("more_body", False)
            and self._spec_version""",
        """            and self._spec_version""",
        tests="tests/engine/test_discarded.py::test_plain_response_with_a_background_task",
    ),
    Mutation(
        "our own signal is not dropped",
        EXCHANGE,
        "failure = failure and tail.signal.taken_out_of(failure)",
        "pass",
    ),
    Mutation(
        "a group with our signal is dropped as a whole",
        TRAVEL,
        """            )[1]
        return None if self._is_behind(exc) else exc""",
        """            )[1] and None
        return None if self._is_behind(exc) else exc""",
        tests="tests/engine/test_discarded.py::test_mixed_group_is_split",
    ),
    Mutation(
        "our signal is not found behind Starlette's ClientDisconnect",
        TRAVEL,
        "context = exc.__context__ if isinstance(exc, (ClientDisconnect, OSError)) else None",
        "context = None",
    ),
    Mutation(
        "an exception of a discarded app is lost",
        TRAVEL,
        "return None if self._is_behind(exc) else exc",
        "return None",
        tests="tests/engine/test_discarded.py::test_other_exception_of_the_app",
    ),
    Mutation(
        "the background task of a replacement runs inside of the app's `send`",
        TRAVEL,
        "value.background = None",
        "tail.background = None",
        tests="tests/engine/test_discarded.py::test_order_of_the_ends",
    ),
    Mutation(
        "a background task runs although the app has failed",
        EXCHANGE,
        "if failure is None and tail.background is not None:",
        "if tail.background is not None:",
        tests="tests/engine/test_response.py::test_background_does_not_run_after_a_failure",
    ),
    # Cancellation goes on.
    Mutation(
        "a swallowed cancellation is over",
        EXCHANGE,
        "return _context.is_cancellation(failure) and _context.is_cancelled(self.task, owed)",
        "return False",
        tests="tests/engine/test_events.py::test_swallowed_cancellation_goes_on",
    ),
    Mutation(
        "a cancellation that was answered is over",
        EXCHANGE,
        "return answered",
        "return None",
        tests="tests/engine/test_events.py::test_swallowed_cancellation_goes_on",
    ),
    Mutation(
        "a cancellation that comes up while we look for the client is lost",
        EXCHANGE,
        "return self.gone, None if isinstance(exc, Exception) else exc",
        "return self.gone, None",
        tests="tests/engine/test_schedules.py::test_cancelled_as_the_app_returns",
    ),
    Mutation(
        "a cancellation of the request is taken for our own look at the client",
        EXCHANGE,
        "with anyio.CancelScope(shield=True) as scope:",
        "with anyio.CancelScope() as scope:",
        tests="tests/engine/test_events.py::test_app_makes_an_error_of_the_cancellation",
    ),
    Mutation(
        "an owed cancellation is not seen on asyncio",
        CONTEXT,
        "return 0 < before <= cancellations(task) or ",
        "return ",
        tests="tests/engine/test_events.py::test_swallowed_cancellation_goes_on",
    ),
    # It fails closed.
    Mutation(
        "a function without a yield lets the request through",
        EXCHANGE,
        "failure = _errors.no_yield(flow)",
        "continue",
        tests="tests/engine/test_rules.py::test_function_that_ends_before_any_yield",
    ),
    Mutation(
        "an exception that a flow swallows is gone",
        EXCHANGE,
        """            error = _errors.swallowed(flow, failure)
            error.__cause__ = failure
            return error""",
        """            return None""",
        tests="tests/engine/test_events.py::test_function_swallows_the_exception",
    ),
    Mutation(
        "no response is reported where the client has left",
        EXCHANGE,
        "return self.client_gone() if gone else _errors.no_response(self.source)",
        "return _errors.no_response(self.source)",
    ),
    Mutation(
        "a client that left is an error of the app",
        EXCHANGE,
        "            if failure is self.disconnect:",
        "            if False:",
    ),
    Mutation(
        "a scope may be held over the first yield",
        EXCHANGE,
        "failure = await exchange.scope_held(scopes)",
        "pass",
        tests="tests/engine/test_events.py::test_scope_held_open_at_the_first_yield",
    ),
    Mutation(
        "a scope may be held over the second yield",
        TRAVEL,
        """        if self.states and open_scopes(self.stepper) != self.scopes:
            return _errors.open_scope(flow)
""",
        "",
        tests="tests/engine/test_events.py::test_scope_held_open_at_a_later_yield",
    ),
    # The request's body that is dropped.
    Mutation(
        "who has dropped the body runs the inner app",
        EXCHANGE,
        "if exchange.drained:",
        "if False:",
        tests="tests/engine/test_drain.py::test_who_drops_the_body_has_to_answer",
    ),
    Mutation(
        "it is dropped where the inner app reads it",
        EXCHANGE,
        "return not incoming.taken and (turn is None or not turn.taken)",
        "return True",
        tests="tests/engine/test_drain.py::test_what_an_app_reads_is_left_to_it",
    ),
    Mutation(
        "nobody knows that the inner app has read all of it",
        EXCHANGE,
        "self._outermost.complete = self.body_left is False",
        "self._outermost.complete = False",
        tests="tests/engine/test_drain.py::test_an_app_that_has_read_all_leaves_nothing",
    ),
    # Tasks and contexts.
    Mutation(
        "a flow is resumed in the context of whoever sends",
        DRIVE,
        "return None if task is self.task else self.runner()",
        "return None",
        tests="tests/engine/test_tasks_and_contexts.py::test_token_is_reset_after_the_yield",
    ),
    Mutation(
        "who waits for a turn is not woken",
        DRIVE,
        """            self.free.set()
""",
        """            pass
""",
    ),
    Mutation(
        "a body may be read in a task of its own",
        DRIVE,
        "raise _errors.own_task()",
        "pass",
        tests="tests/engine/test_tasks_and_contexts.py::test_body_read_from_a_task_of_its_own",
    ),
    Mutation(
        "a scope may be held while a body is awaited",
        DRIVE,
        "return bool(_context.open_scopes(self.stepper) != self.scopes)",
        "return False",
        tests="tests/engine/test_errors.py::test_body_read_inside_a_cancel_scope",
    ),
    # Reading never steals.
    Mutation(
        "who looks at a message takes it",
        BODY,
        "message = ahead[place.number]",
        "message = ahead.popleft()",
        tests="tests/engine/test_request_body.py::test_body_is_read_by_layers_and_by_the_app",
    ),
    Mutation(
        "two that read a request body pull a message each",
        BODY,
        """        await turn.wait()
        if pulls != self._pulls:
            return
        turn.taken = True
""",
        """        turn.taken = True
""",
        tests="tests/tools/test_mutations.py::test_two_tasks_read_the_request_body",
    ),
    Mutation(
        "a joined body comes twice",
        BODY,
        "            self.put(whole.getvalue())",
        """            self.put(whole.getvalue())
            self.put(whole.getvalue())""",
        tests="tests/engine/test_request_body.py::test_client_that_left_is_found_behind_a_long_body",
    ),
    Mutation(
        "messages without content are kept",
        BODY,
        """            elif not size:
                return
""",
        """            elif not size:
                pass
""",
        tests="tests/engine/test_request_body.py::test_memory_of_a_body_that_is_read",
    ),
    Mutation(
        "small messages of the app are not joined",
        BODY,
        "if len(ahead) < _MANY or not self._join(message, reader):",
        "if True:",
        tests="tests/engine/test_response.py::test_memory_of_a_body_that_is_held",
    ),
    Mutation(
        "messages of the app without content are kept",
        BODY,
        """        if not chunk:
            return True
        held""",
        """        held""",
        tests="tests/engine/test_response.py::test_memory_of_a_body_that_is_held",
    ),
    Mutation(
        "headers that are there once only are forgotten",
        TRAVEL,
        "if type(given) is not list and iter(given) is given:",
        "if False:",
        tests="tests/engine/test_response.py::test_headers_given_as_an_iterator_are_known_as_the_old_ones",
    ),
    Mutation(
        "headers can be edited after they were sent",
        RESPONSE,
        "headers._list = SentHeaders(raw)",
        "headers._list = raw.copy()",
        tests="tests/engine/test_response.py::test_edit_after_the_response_was_sent_is_refused",
    ),
    Mutation(
        "a status can be set after it was sent",
        EXCHANGE,
        "if response is not None and response.status_code != response._sent_status:",
        "if False:",
        tests="tests/engine/test_response.py::test_edit_after_the_response_was_sent_is_refused",
    ),
    Mutation(
        "headers of the function's own are closed for every request",
        RESPONSE,
        "if type(headers) is not Headers:",
        "if not isinstance(headers, MutableHeaders):",
        tests="tests/engine/test_response.py::test_headers_of_a_function_s_own_may_be_shared",
    ),
    Mutation(
        "small messages are not joined",
        BODY,
        "elif len(ahead) >= _MANY and size < _SMALL and",
        "elif len(ahead) < 0 and",
        tests="tests/engine/test_request_body.py::test_memory_of_a_body_that_is_read",
    ),
    Mutation(
        "who asks whether the client is there takes its upload without end",
        BODY,
        "return self.complete or self._size - self._read < LOOK_AHEAD",
        "return True",
        tests="tests/engine/test_request_body.py::test_asking_often_leaves_an_upload_where_it_is",
    ),
    Mutation(
        "an upload that breaks off is an error of the layer",
        BODY,
        "            exchange.disconnect = ClientDisconnect()\n",
        "            return ClientDisconnect()\n",
        tests="tests/engine/test_request_body.py::test_disconnect_that_no_layer_handles_runs_no_app",
    ),
    # What a layer changes is seen inward only.
    Mutation(
        "a layer changes the scope that it was given",
        SCOPE,
        """            own = self._own = _copy_of(self._given)
            self._touched = exchange.touched = True
""",
        """            own = self._own = self._given
            self._touched = exchange.touched = True
""",
        tests="tests/engine/test_scope.py::test_changes_are_seen_further_in_and_nowhere_else",
    ),
    Mutation(
        "the app writes into the scope that the layer holds",
        SCOPE,
        "self.scope = scope = {**own}",
        "self.scope = scope = own",
        tests="tests/engine/test_scope.py::test_scope_that_is_held_over_the_yield_is_the_layers_own",
    ),
    Mutation(
        "what the app writes is not handed outward",
        SCOPE,
        "            given[key] = own[key] = value\n",
        "            own[key] = value\n",
        tests="tests/engine/test_scope.py::test_what_the_app_writes_is_outside_at_the_start",
    ),
    Mutation(
        "what the app writes is handed outward at the end only",
        SCOPE,
        """            if message["type"] in _ANSWERS:
                hand_outward()
""",
        "",
        tests="tests/engine/test_scope.py::test_what_the_app_writes_is_outside_at_the_start",
    ),
    Mutation(
        "what a layer has set is handed outward when the app changes it",
        SCOPE,
        "if value is changed[key] or key in _OF_THE_REQUEST:",
        "if value is changed[key]:",
        tests="tests/engine/test_scope.py::test_root_path_that_a_layer_has_set_stays_inside",
    ),
    Mutation(
        "two may pull from a transform at a time",
        BODY,
        """        await self.wait()
        self.taken = True
        try:
            return await self._pull()""",
        """        self.taken = True
        try:
            return await self._pull()""",
        tests="tests/engine/test_request_body.py::test_two_tasks_of_the_app_receive_through_a_transform",
    ),
    Mutation(
        "a request transform that has failed goes on",
        BODY,
        "self._failure = exc if isinstance(exc, Exception) else _errors.transform_cancelled()",
        "self._failure = None",
        tests="tests/engine/test_request_body.py::test_failure_of_a_transform_is_raised_again",
    ),
    Mutation(
        "a response transform that has failed is not noted",
        BODY,
        "            self.failure = exc",
        "            pass",
        tests="tests/tools/test_mutations.py::test_failure_of_a_transform_that_the_app_swallows",
    ),
    Mutation(
        "what a transform passes by is lost",
        BODY,
        "            made.extend(self.inner.aside)",
        "            pass",
        tests="tests/engine/test_response.py::test_other_messages_pass_untouched",
    ),
    Mutation(
        "what cut a body off is told only once",
        BODY,
        """            if (thrown := driver.thrown) is not None:
                raise thrown
""",
        "",
        tests="tests/engine/test_response.py::test_reading_again_after_the_app_failed",
    ),
    Mutation(
        "flows further in have no word on a body that was cut off",
        TRAVEL,
        "while exchange.tails and not isinstance(exchange.tails[0].body, TransformedBody):",
        "while False:",
    ),
    Mutation(
        "an end that nobody got completes the response",
        TRAVEL,
        """            if gone:
                progress.lost = True""",
        """            if gone:
                pass""",
        tests="tests/engine/test_response.py::test_end_of_the_body_that_nobody_gets",
    ),
    Mutation(
        "an end that nobody got counts where nothing else is to be done",
        EXCHANGE,
        "if not progress.complete or progress.lost:",
        "if not progress.complete:",
        tests="tests/engine/test_response.py::test_end_of_the_body_that_nobody_gets",
    ),
    Mutation(
        "a body that was cut off counts as complete where nothing else is to be done",
        EXCHANGE,
        "if not progress.complete or progress.lost:",
        "if progress.lost:",
        tests="tests/engine/test_events.py",
    ),
    Mutation(
        "flows that wait are forgotten where something else is to be done",
        EXCHANGE,
        "self.add_tail(flow).response = response",
        "pass",
    ),
    Mutation(
        "a body that somebody has asked for goes unseen",
        TRAVEL,
        """                self.plain = None
            else:""",
        """                pass
            else:""",
    ),
    Mutation(
        "a background task goes unseen",
        RESPONSE,
        "self._outbound.exchange.complicate()",
        "pass",
        tests="tests/engine/test_response.py::test_background_runs_after_the_app_ended",
    ),
    # The books are right.
    Mutation(
        "nobody notes when the start was sent",
        TRAVEL,
        """        for progress in self._progresses:
            progress.started_at = now""",
        "",
        tests="tests/engine/test_response.py::test_times_are_in_order",
    ),
    Mutation(
        "nobody notes when the start of a replacement was sent",
        TRAVEL,
        "tail.response._progress.started_at = now",
        "pass",
        tests="tests/engine/test_response.py::test_time_of_a_response_that_is_replaced",
    ),
    Mutation(
        "a second start may overtake the first",
        TRAVEL,
        "self.phase = self.phase.leaves",
        "self.phase = self.phase.out",
        tests="tests/engine/test_events.py::test_sibling_sends_a_second_start_while_the_first_is_on_its_way",
    ),
    Mutation(
        "what a flow does when it is resumed at the end goes unseen",
        EXCHANGE,
        "if failure is None and self.plain:",
        "if failure is None:",
        tests="tests/engine/test_tasks_and_contexts.py::test_end_leaves_nothing_to_the_garbage_collector",
    ),
    # Limits.
    Mutation(
        "a slow client counts as a silent app",
        LIMIT,
        "self._cut.move(self._end if self._exchange.is_straight() else math.inf)",
        "pass",
        tests="tests/engine/test_limits.py::test_idle_stands_still_while_the_server_sends",
    ),
    Mutation(
        "a limit cuts off what layers further out do",
        LIMIT,
        "self._cut.move(self._end if self._exchange.is_straight() else math.inf)",
        "self._cut.move(self._end)",
        tests="tests/engine/test_limits.py::test_total_does_not_cut_layers_further_out",
    ),
    Mutation(
        "what an app says after its time goes out",
        LIMIT,
        "if self._cut.struck and self._next is not None:",
        "if False:",
        tests="tests/engine/test_limits.py::test_nothing_of_an_app_that_swallows_it_is_sent",
    ),
    Mutation(
        "background tasks are limited",
        LIMIT,
        "self._go_on(over=last or self._exchange.is_discarded())",
        "self._go_on(over=self._exchange.is_discarded())",
        tests="tests/engine/test_limits.py::test_background_tasks_are_not_limited",
    ),
    Mutation(
        "a limit swallows the cancellations of others",
        LIMIT,
        "and self._task.uncancel() <= self._before",
        "and self._task.uncancel() >= 0",
        tests="tests/engine/test_limits.py::test_cancellation_by_the_server_goes_on",
    ),
    Mutation(
        "an upload that takes too long is answered by the app",
        LIMIT,
        """if not starts or message["status"] != REQUEST_TIMEOUT:""",
        "if False:",
        tests="tests/engine/test_limits.py::test_upload_that_stops",
    ),
    Mutation(
        "who watches the client takes an upload without a bound",
        LIMIT,
        "while self._size >= self.AHEAD:",
        "while False:",
        tests="tests/engine/test_limits.py::test_back_pressure_is_kept",
    ),
    Mutation(
        "a background task is cancelled when the client leaves",
        LIMIT,
        "if last and not self._over:",
        "if False:",
        tests="tests/engine/test_limits.py::test_background_task_of_a_complete_response",
    ),
    Mutation(
        "a time limit around a body is taken for an app that returned",
        TRAVEL,
        "elif not exchange.gone and self.is_out_of_time():",
        "elif False:",
        tests="tests/engine/test_read_limits.py::test_limit_is_answered",
    ),
    Mutation(
        "who waits for the last message is told when the app has ended",
        BODY,
        """                if self.observers:
                    self.end()
""",
        "",
        tests="tests/engine/test_on_sent.py::test_before_a_background_task",
    ),
    Mutation(
        "a client that is gone is no end of the response",
        TRAVEL,
        'if getattr(outgoing, "cr_frame", None) is None:',
        "if False:",
        tests="tests/engine/test_on_sent.py::test_disconnected_by_receive",
    ),
    Mutation(
        "a client is gone that the server takes the last message for",
        TRAVEL,
        'if getattr(outgoing, "cr_frame", None) is None:',
        "if True:",
        tests="tests/engine/test_on_sent.py::test_disconnect_that_is_told_within_the_last_send",
    ),
    Mutation(
        "a chunk that the server fails with counts",
        TRAVEL,
        "self.tally.bytes_sent -= size",
        "pass",
        tests="tests/engine/test_response.py::test_chunk_that_the_server_fails_with_does_not_count",
    ),
    Mutation(
        "a chunk that the app fails behind does not count",
        TRAVEL,
        "and _came_out_of(sending, failure):",
        "and sending:",
        tests="tests/engine/test_response.py::test_chunk_that_the_server_fails_with_does_not_count",
    ),
    Mutation(
        "chunks count before a server of ASGI 2.4 has taken them",
        TRAVEL,
        "return False if self._spec_version() >= (2, 4) else progress",
        "return progress",
        tests="tests/engine/test_on_sent.py::test_disconnected_by_send",
    ),
    Mutation(
        "what is collected of a body has no bound",
        BODY,
        "        if size > self._most:\n            return False\n",
        "",
        tests="tests/engine/test_response.py::test_body_over_the_limit_is_refused_at_once",
    ),
    Mutation(
        "messages that are collected are joined before those behind them",
        BODY,
        """            finally:
                self._grow_no_more()
""",
        """            finally:
                pass
""",
        tests="tests/engine/test_response.py::test_memory_of_a_body_that_is_held",
    ),
    Mutation(
        "a callback runs in the context of whoever sends",
        OBSERVE,
        "context = None if running is task else _context.context_of(task)",
        "context = None",
        tests="tests/engine/test_on_sent.py::test_context_of_the_request",
    ),
    Mutation(
        "a function that fails is not told before the app",
        TRAVEL,
        """            waiting.pop()
            observer.tell(outcome_of(failure))
""",
        """            pass
""",
        tests="tests/engine/test_on_sent.py::test_function_that_fails",
    ),
    Mutation(
        "the body ends a response that has trailers",
        BODY,
        'if not message.get("more_body") and not self._trailers:',
        'if not message.get("more_body"):',
        tests="tests/engine/test_response.py::test_accounting_of_a_missing_trailer",
    ),
    Mutation(
        "the body of an answer to HEAD is counted as sent",
        BODY,
        """            if not self.silent:
""",
        """            if True:
""",
        tests="tests/engine/test_response.py::test_bytes_of_an_answer_to_head_are_not_sent",
    ),
    Mutation(
        "an app that begins anew for a client that is gone is blamed",
        TRAVEL,
        """                if not self.exchange.gone:
                    raise _errors.second_start()""",
        """                raise _errors.second_start()""",
        tests="tests/engine/test_events.py::test_app_that_begins_anew_when_its_client_is_gone",
    ),
    Mutation(
        "what such an app sends is taken for the rest of its body",
        TRAVEL,
        "self._astray = True",
        "pass",
        tests="tests/engine/test_events.py::test_app_that_begins_anew_when_its_client_is_gone",
    ),
    # Behind a status that allows no body there is none.
    Mutation(
        "a layer that gives a response such a status lets the body go out",
        TRAVEL,
        """        if response._body is None:
            self._silent = True
        return None""",
        """        return None""",
        tests="tests/engine/test_framing.py::test_no_byte_of_a_body_goes_out_where_the_status_allows_none",
    ),
    Mutation(
        "a layer that gives a response such a status leaves its length",
        TRAVEL,
        """            frame_nothing(response.raw_headers, status)
            response._message =""",
        """            response._message =""",
        tests="tests/engine/test_framing.py::test_no_byte_of_a_body_goes_out_where_the_status_allows_none",
    ),
    Mutation(
        "a 304 that becomes another status keeps the length of the 200 it stood for",
        TRAVEL,
        """                frame(response.raw_headers, None)
            response._message""",
        """                pass
            response._message""",
        tests="tests/engine/test_framing.py::test_length_of_a_304_is_not_that_of_what_it_becomes",
    ),
    Mutation(
        "an empty body that is set declares its length whatever the status",
        RESPONSE,
        """        if isinstance(self._body, FixedBody):
            return True
        if self.status_code == _NOT_MODIFIED:""",
        """        if self.status_code == _NOT_MODIFIED:""",
        tests="tests/engine/test_framing.py::"
        "test_body_of_nothing_has_no_length_where_the_status_allows_none",
    ),
    Mutation(
        "a body that somebody has read goes out under such a status",
        RESPONSE,
        "            body = SilentBody(body)",
        "            pass",
        tests="tests/engine/test_framing.py::test_no_byte_of_a_body_goes_out_where_the_status_allows_none",
    ),
    Mutation(
        "an early answer with such a status has a body",
        EXCHANGE,
        " or not is_framed(value):",
        ":",
        tests="tests/engine/test_framing.py::test_no_byte_of_a_body_goes_out_where_the_status_allows_none",
    ),
    Mutation(
        "a layer gives a response a status that is none of a final one",
        TRAVEL,
        """            if status < FINAL:
                return _errors""",
        """            if False:
                return _errors""",
        tests="tests/engine/test_framing.py::test_status_of_no_final_response_is_refused",
    ),
    Mutation(
        "the loop is told of flows",
        EXCHANGE,
        "_set_hooks(*_NO_HOOK)",
        "_set_hooks(*hook)",
        tests="tests/engine/test_tasks_and_contexts.py::test_loop_is_told_of_generators_but_not_of_flows",
    ),
    Mutation(
        "the loop is not told of the generators of users",
        EXCHANGE,
        "_set_hooks(*hook)",
        "pass",
        tests="tests/engine/test_tasks_and_contexts.py::test_loop_is_told_of_generators_but_not_of_flows",
    ),
    Mutation(
        "a flow that has begun is begun again",
        "httpmw/_adapter.py",
        "if flow is not None and has_begun(flow):",
        "if False:",
        tests="tests/engine/test_refused.py::test_a_flow_that_waits_lets_nobody_else_in",
    ),
    Mutation(
        "a flow that has begun is delegated to",
        EXCHANGE,
        "if has_begun(value):",
        "if False:",
        tests="tests/engine/test_refused.py::test_a_flow_that_waits_lets_nobody_else_in",
    ),
    Mutation(
        "a coroutine that has begun is begun again",
        "httpmw/_call_next.py",
        "elif coroutine.cr_suspended:",
        "elif False:",
        tests="tests/engine/test_refused.py::test_a_coroutine_that_waits_lets_nobody_else_in",
    ),
    Mutation(
        "a predicate that gives a coroutine counts as true",
        EXCHANGE,
        """if meant is not True and hasattr(type(meant), "__await__"):""",
        "if False:",
        tests="tests/engine/test_refused.py::test_a_predicate_that_gives_a_coroutine",
    ),
    # Handshakes.
    Mutation(
        "every layer is there for handshakes",
        EXCHANGE,
        "            functions = handshakes.functions\n",
        "            pass\n",
        tests="tests/engine/test_handshake.py::test_layers_with_and_without_it_share_a_stack",
    ),
    Mutation(
        "an acceptance goes out with any status",
        HANDSHAKE,
        "        if response.is_acceptance:\n            return _errors",
        "        if False:\n            return _errors",
        tests="tests/engine/test_handshake.py::test_an_acceptance_is_not_refused_by_its_status",
    ),
    Mutation(
        "an acceptance loses its headers",
        HANDSHAKE,
        '                origin = {**origin, "headers": message["headers"]}\n',
        "                pass\n",
        tests="tests/engine/test_handshake.py::test_the_acceptance",
    ),
    Mutation(
        "a response goes out where only a close is understood",
        HANDSHAKE,
        "        if not self._denies():\n",
        "        if False:\n",
        tests="tests/engine/test_handshake.py::test_refused_by_a_layer",
    ),
    Mutation(
        "a close never goes out as it came",
        HANDSHAKE,
        'elif close is not None and start["status"] == _REFUSED and not start.get("headers"):',
        "elif False:",
        tests="tests/engine/test_handshake.py::test_the_app_closes",
    ),
    Mutation(
        "a body that a close was given is lost",
        HANDSHAKE,
        'if not message.get("body") and not message.get("more_body"):',
        "if True:",
        tests="tests/engine/test_handshake.py::test_a_close_that_is_edited_is_a_response",
    ),
    Mutation(
        "the body of a refusal is sent behind a close",
        HANDSHAKE,
        "        if self._is_open:\n",
        "        if True:\n",
        tests="tests/engine/test_handshake.py::test_refused_by_a_layer",
    ),
    Mutation(
        "messages do not go straight",
        HANDSHAKE,
        "outermost = self._outermost_of_all() if self.answered == _ACCEPT else None",
        "outermost = None",
        tests="tests/engine/test_handshake.py::test_after_the_acceptance_the_app_has_what_is_the_servers",
    ),
    Mutation(
        "messages go straight past those who count",
        HANDSHAKE,
        "        if self.phase is not PASSING or self.incoming is not None:\n",
        "        if self.incoming is not None:\n",
        tests="tests/engine/test_handshake.py::test_how_it_ended",
    ),
    Mutation(
        "messages go straight past what was read ahead",
        HANDSHAKE,
        "        if self.phase is not PASSING or self.incoming is not None:\n",
        "        if self.phase is not PASSING:\n",
        tests="tests/engine/test_handshake.py::test_a_disconnect_that_was_read_ahead_is_not_lost",
    ),
    Mutation(
        "messages go straight past an outer layer",
        HANDSHAKE,
        "        return outer._outermost_of_all()",
        "        return outer",
        tests="tests/engine/test_handshake.py::test_layers_inside_of_one_that_counts",
    ),
    Mutation(
        "the connect is not looked for in what was read ahead",
        HANDSHAKE,
        "        if not self._asked and self.incoming is None and self.is_outermost:",
        "        if not self._asked and self.is_outermost:",
        tests="tests/engine/test_handshake.py::test_is_disconnected_before_the_answer",
    ),
    Mutation(
        "a discarded app is left waiting",
        HANDSHAKE,
        "            each.cancel()\n",
        "            pass\n",
        tests="tests/engine/test_handshake.py::test_a_discarded_app_is_not_left_waiting",
    ),
    Mutation(
        "a discarded app is woken by a scope that a group takes over",
        HANDSHAKE,
        "            each.shield = True\n",
        "",
        tests="tests/engine/test_handshake_schedules.py::test_a_discarded_app_that_is_cancelled_is_not_woken",
    ),
    Mutation(
        "an app that was woken does not see that its scope is cancelled",
        HANDSHAKE,
        "            await anyio.lowlevel.checkpoint_if_cancelled()",
        "            pass",
        tests="tests/engine/test_handshake_schedules.py::test_a_cancelled_scope_is_not_hidden_from_who_is_woken",
    ),
    Mutation(
        "a cancellation beside is_disconnected() is taken back by a group",
        "httpmw/_connection.py",
        "            with anyio.CancelScope(shield=True) as scope:\n",
        "            with anyio.CancelScope() as scope:\n",
        tests="tests/engine/test_connection.py::test_a_cancellation_beside_is_disconnected_is_counted",
    ),
    Mutation(
        "a discarded app is told of the end before the connect",
        HANDSHAKE,
        'if kind == "http.disconnect" and is_first:',
        "if False:",
        tests="tests/engine/test_handshake.py::test_a_discarded_app_gets_the_connect_first",
    ),
    Mutation(
        "a discarded app that has accepted may go on sending",
        HANDSHAKE,
        'if message["type"].startswith("websocket.") and self._spec_version() >= (2, 4):',
        "if False:",
        tests="tests/engine/test_handshake.py::test_what_a_discarded_app_sends",
    ),
    Mutation(
        "a discarded app gets an error before ASGI 2.4",
        HANDSHAKE,
        'if message["type"].startswith("websocket.") and self._spec_version() >= (2, 4):',
        'if message["type"].startswith("websocket."):',
        tests="tests/engine/test_handshake.py::test_what_a_discarded_app_sends",
    ),
    Mutation(
        "a discarded app is told a reason before ASGI 2.3",
        HANDSHAKE,
        "        if self._spec_version() >= (2, 3):\n",
        "        if True:\n",
        tests="tests/engine/test_handshake.py::test_a_discarded_app_sees_a_client_that_left",
    ),
    Mutation(
        "what Starlette makes of our own signal goes out",
        HANDSHAKE,
        "isinstance(exc, WebSocketDisconnect) or super()._is_behind(exc)",
        "super()._is_behind(exc)",
        tests="tests/engine/test_handshake.py::test_a_discarded_app_of_starlette",
    ),
    Mutation(
        "an echo takes the place of the close",
        HANDSHAKE,
        "        if self.close_code is not None:  # an echo\n",
        "        if False:\n",
        tests="tests/engine/test_handshake.py::test_closed_by_the_app",
    ),
    Mutation(
        "a connection that broke off is complete",
        HANDSHAKE,
        "        self.complete = code != _DROPPED\n",
        "        self.complete = True\n",
        tests="tests/engine/test_handshake.py::test_how_it_ended",
    ),
    Mutation(
        "text is counted in characters",
        HANDSHAKE,
        "len(text) if text.isascii() else len(text.encode())",
        "len(text)",
        tests="tests/engine/test_handshake.py::test_how_it_ended",
    ),
    Mutation(
        "the end of a socket is looked for as that of a body",
        HANDSHAKE,
        "        if not isinstance(progress, SocketProgress):\n            return",
        "        if True:\n            return",
        tests="tests/engine/test_handshake.py::test_no_close_at_all",
    ),
    Mutation(
        "an acceptance waits for its body",
        HANDSHAKE,
        "        if self.answered != _ACCEPT:\n            return super().live_body()",
        "        if True:\n            return super().live_body()",
        tests="tests/engine/test_handshake.py::test_the_acceptance",
    ),
    Mutation(
        "an acceptance can be given a body",
        RESPONSE,
        "        if self.is_acceptance:\n",
        "        if False:\n",
        tests="tests/engine/test_handshake.py::test_the_body_of_an_acceptance_cannot_be_set",
    ),
    Mutation(
        "a response gets the scope of a WebSocket",
        HANDSHAKE,
        '**scope, "type": "http", "method": "GET"}',
        "**scope}",
        tests="tests/engine/test_handshake.py::test_kinds_of_responses",
    ),
    Mutation(
        "a limit hides who is behind it",
        HANDSHAKE,
        "isinstance(behind, Handshake) or _DENIAL in",
        "_DENIAL in",
        tests="tests/engine/test_handshake.py::test_a_refusal_inside_of_a_time_limit_is_seen_whole",
    ),
    Mutation(
        "an app that does not answer is told of HTTP",
        HANDSHAKE,
        "return _errors.no_answer(self.source) if isinstance(error, NoResponseError) else error",
        "return error",
        tests="tests/engine/test_handshake.py::test_an_app_that_does_not_answer",
    ),
]
