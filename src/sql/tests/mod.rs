mod earlier;
mod linear_time;
mod locks;
mod reads;
mod session_state;
mod transaction_control;
